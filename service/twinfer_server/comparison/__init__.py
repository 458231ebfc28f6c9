"""`twinfer compare`: every precision with every acceleration, beside each other: time, memory and agreement with fp32."""
