#!/bin/sh
# USB devices that the kernel makes up on dummy_hcd, of any identity: CDC ACM functions, /dev/ttyACM* (configfs gadget), or a camera,
# /dev/video* (camera.py: the UVC function of the kernel needs isochronous endpoints, and dummy_hcd has none).
#   gadget.sh add NAME VENDOR PRODUCT TTYS [SERIAL]    without SERIAL the device has none
#   gadget.sh camera NAME VENDOR PRODUCT               one at a time
#   gadget.sh del NAME
set -eu
controllers() { [ -d /sys/module/dummy_hcd ] || modprobe dummy_hcd num=8; }
gadgets=/sys/kernel/config/usb_gadget
dir=$gadgets/$2
case $1 in
add)
    modprobe libcomposite
    controllers
    mkdir "$dir"
    cd "$dir"
    echo "0x$3" > idVendor
    echo "0x$4" > idProduct
    mkdir strings/0x409 configs/c.1
    [ -z "${6:-}" ] || echo "$6" > strings/0x409/serialnumber
    echo Acme > strings/0x409/manufacturer
    echo Widget > strings/0x409/product
    for number in $(seq "$5"); do
        mkdir "functions/acm.$2-$number"
        ln -s "functions/acm.$2-$number" configs/c.1/
    done
    for udc in /sys/class/udc/*; do
        udc=${udc##*/}
        grep -qx "$udc" "$gadgets"/*/UDC || { echo "$udc" > UDC; exit; }
    done
    echo "no free controller" >&2
    exit 1
    ;;
camera)
    controllers
    modprobe --all uvcvideo gadgetfs
    mkdir -p /dev/gadget
    mountpoint --quiet /dev/gadget || mount -t gadgetfs none /dev/gadget
    systemd-run --quiet --unit "camera-$2" python3 /share/camera.py "$3" "$4"
    ;;
del)
    if systemctl --quiet is-active "camera-$2"; then
        systemctl stop "camera-$2"
        exit
    fi
    cd "$dir"
    [ -z "$(cat UDC)" ] || echo > UDC
    rm configs/c.1/acm.*
    rmdir configs/c.1 functions/* strings/0x409
    cd ..
    rmdir "$2"
    ;;
esac
