"""Front processes: they accept calls, parse and decode; the rows go to the one process that owns the device."""
