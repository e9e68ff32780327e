"""How weights live on a machine: device, memory, mapped tensors, int8, offload."""
