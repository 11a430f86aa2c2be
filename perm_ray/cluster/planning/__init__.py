"""What a configuration takes in memory and time, by arithmetic alone: nothing is loaded or started."""
