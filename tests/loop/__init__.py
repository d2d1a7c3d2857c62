"""The loop and the evictor on virtual time, against fakes that keep state."""
