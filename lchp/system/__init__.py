"""The machine as the package finds it: streams, signals, devices, other workers. Free of Ray."""
