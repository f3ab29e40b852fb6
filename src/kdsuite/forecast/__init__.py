"""What a plan will cost: time at rates measured on this device, bytes from the models' shapes."""
