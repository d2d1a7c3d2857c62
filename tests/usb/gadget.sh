#!/bin/sh
# USB devices that the kernel makes up (configfs gadget on dummy_hcd): CDC ACM functions, /dev/ttyACM*, of any identity.
#   gadget.sh add NAME VENDOR PRODUCT TTYS [SERIAL]    without SERIAL the device has none
#   gadget.sh del NAME
set -eu
gadgets=/sys/kernel/config/usb_gadget
dir=$gadgets/$2
case $1 in
add)
    modprobe libcomposite
    [ -d /sys/module/dummy_hcd ] || modprobe dummy_hcd num=8
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
del)
    cd "$dir"
    [ -z "$(cat UDC)" ] || echo > UDC
    rm configs/c.1/acm.*
    rmdir configs/c.1 functions/* strings/0x409
    cd ..
    rmdir "$2"
    ;;
esac
