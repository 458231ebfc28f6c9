"""`twinfer profile`: whether members go well together on this device, and at which batch size, precision and acceleration."""
