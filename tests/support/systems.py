"""What a test needs of the system that it runs on."""

import os
import sys

import pytest

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
on_posix = pytest.mark.skipif(os.name != "posix", reason="needs signals, a shell or a terminal as POSIX has them")
