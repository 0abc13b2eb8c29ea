# The long forms of the reliability tests; their figures are in docs/reliability.md.
.PHONY: fault fuzz soak
fault: $(READY)  ## killed or stopped at chosen moments and at 240 random ones, over backends, methods, sparsifiers
	OMP_NUM_THREADS=1 $(BIN)/python tests/robustness/moments.py
	OMP_NUM_THREADS=1 $(BIN)/python tests/robustness/killing.py --kills 240

fuzz: $(READY)  ## 10,000 mutated checkpoints, archives, images, IDX files and configurations, and bombs
	OMP_NUM_THREADS=1 $(BIN)/python tests/robustness/fuzzing.py --count 10000

soak: $(READY)  ## 200 tiny tasks: memory and time per step must not grow
	OMP_NUM_THREADS=1 $(BIN)/python tests/robustness/soak.py
