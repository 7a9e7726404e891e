"""Runs in place of an agent of Ray's node, which wants it alive: does nothing, and ends with the node. See local_start.py."""

import os
import time

LOOK_S = 1.0  # choice
ORPHANED = 1  # the parent of what has lost its own

node = os.getppid()
while node != ORPHANED and os.getppid() == node:
    time.sleep(LOOK_S)
