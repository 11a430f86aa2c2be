"""What `perm-ray judge` can do: a file each."""
