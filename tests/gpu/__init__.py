"""What wants a device beside the CPU: `make test-gpu BACKEND=vulkan|cuda|metal|rpc`; collected only when asked for."""
