"""A run directory as one HTML page, for `perm-ray report`."""
