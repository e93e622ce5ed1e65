"""Fleets of workers behind one interface: `base` says what a fleet is, `local` runs processes on this machine."""
