"""The exit statuses of the program, which scripts and the systemd unit rely on.

`devwatch.cli.early` imports this module before everything else, so it imports nothing itself.
"""

DONE = 0
FAILED = 1
USAGE = 2
"""As of other programs for a wrong command line (getopt(3), argparse). The systemd unit does not restart after it."""
CONFIGURATION = 78
"""EX_CONFIG of sysexits.h. The systemd unit does not restart after it."""
INTERRUPTED = 130
"""128 and the number of SIGINT, as a shell reports a program that this signal has ended."""

SUMMARY = f"Exit status: {DONE} done, {FAILED} failed, {USAGE} wrong usage, {CONFIGURATION} wrong configuration."
"""What help and documentation say."""
