# The long forms of the reliability tests; their figures are in docs/reliability.md.
.PHONY: fault fuzz soak
fault: $(READY)  ## kill -9 at 100 random moments over both backends; every run must equal one never stopped
	OMP_NUM_THREADS=1 $(BIN)/python tests/robustness/killing.py --kills 100

fuzz: $(READY)  ## 10,000 mutated checkpoints, archives, images, IDX files and configurations
	OMP_NUM_THREADS=1 $(BIN)/python tests/robustness/fuzzing.py --count 10000

soak: $(READY)  ## 200 tiny tasks: memory and time per step must not grow
	OMP_NUM_THREADS=1 $(BIN)/python tests/robustness/soak.py
