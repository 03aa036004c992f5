"""The command line `homing`: data on stdout, talk on stderr, documented exit codes."""
