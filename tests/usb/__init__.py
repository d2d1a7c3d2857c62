"""devwatch as a service of a virtual machine in which USB serial sticks are really plugged and pulled."""
