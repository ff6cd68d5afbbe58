"""Landscapes of solutions on the disk: what is asked for, which lines and planes that means, and their losses."""
