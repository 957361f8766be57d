"""What the methods are called in the tables."""

PLAIN = "plain CFG, base alone"
OURS = "RLG, as the pair chooses"
ONE_BATCH = "RLG, one batch"
TWO_PASSES = "RLG, two passes"
OUR_CHECKPOINTS = "RLG, two checkpoints"
TWO_LOADED = "two stock guiders"
DIFFUSERS = "diffusers + PEFT"
