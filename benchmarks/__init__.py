"""What `perm-ray benchmark` can measure: a file each."""
