"""The project itself: its floors, its Makefile, its documentation, its releases."""
