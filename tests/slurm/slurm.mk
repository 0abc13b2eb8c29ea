test-slurm: $(READY)  ## the sweep on a real SLURM cluster: one node on loopback (needs Debian's slurm-wlm and munge)
	tests/slurm/cluster.sh $(BIN)/python -m pytest tests/slurm -m slow

.PHONY: test-slurm
