"""devwatch as a service of a virtual machine in which USB devices are really plugged and pulled."""
