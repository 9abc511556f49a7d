"""`make app`: weblab-local as a folder that runs where there is no Python, on any processor of this kind.

program.py is what is frozen, weblab-local.spec says how, notices.py collects the licences of what comes along.
"""
