"""Serials that makers give to many devices, so that they identify none."""

from __future__ import annotations

from types import MappingProxyType

SHARED_SERIALS = MappingProxyType(
    {
        # usb-Zooz_800_Z-Wave_Stick_533D004242-if00 in the public configurations of many unrelated owners.
        "533D004242": "Zooz ZST39, 800 series",
        # usb-Silicon_Labs_CP2102_USB_to_UART_Bridge_Controller_0001-if00-port0, and the same for the Zooz ZST10 700: the default of the
        # chip (Silicon Labs, AN721).
        "0001": "bridge chips CP2102 that the maker of the device has not programmed, some Zooz ZST10 700",
        # usb-FTDI_FT232R_USB_UART_A50285BI-if00-port0 in many unrelated public projects: FTDI itself gives each chip its own.
        "A50285BI": "copies of the bridge chip FT232R",
        # usb-FTDI_FT232R_USB_UART_00000000-if00-port0, usb-Texas_Instruments_XDS110__02.02.04.02__with_CMSIS-DAP_00000000-if00.
        "00000000": "copies of the bridge chip FT232R, some debuggers XDS110",
        # DSheirer/sdrtrunk issue 661, shajen/rtl-sdr-scanner-cpp issue 7: what `rtl_eeprom -s` is for.
        "00000001": "radio receivers RTL-SDR",
        # RfidResearchGroup/ChameleonUltra pull request 388, Noltari/pico-uart-bridge pull request 8; networkupstools/nut issue 605.
        "000000000000": "firmware for microcontrollers that sets none, some UPSs of CyberPower",
        # usb-HUAWEI_MOBILE_HUAWEI_MOBILE_0123456789ABCDEF-if00-port0, usb-SIMCOM_SDXBAAGHA-IDP__SN:..._0123456789ABCDEF-if00-port0.
        "0123456789ABCDEF": "mobile modems of Huawei and SIMCom",
        # usb-Huawei_Incorporated_HUAWEI_Mobile_Connect_1234567890ABCDEF-if00-port0, and the same for ZTE and for Sierra Wireless.
        "1234567890ABCDEF": "mobile modems of Huawei, ZTE and Sierra Wireless",
        # Klipper, src/Kconfig, USB_SERIAL_NUMBER; usb-Teensyduino_USB_Serial_12345-if00.
        "12345": "boards with Klipper that do not use the id of their chip, older Teensy boards",
    }
)
"""By serial as udev writes it, on which devices it is seen."""


def is_shared(serial: str | None) -> bool:
    """Return whether a serial is known to be carried by many devices, so that it identifies none."""
    return serial in SHARED_SERIALS
