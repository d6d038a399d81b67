"""How far results may lie apart, and why. One place for all tests."""

from __future__ import annotations

# Sigmoid, blur and bilinear weights are a dozen float32 operations on values up to 1 (logits: up to 10).
ROI_MAP_ABS = 1e-6
RESIZED_FEATURES_ABS = 1e-6

# The official implementation run with another attention kernel moves RoI logits by 5e-5 and step logits by 7e-6;
# hidden states have values to about 10.
GOLDEN_HIDDEN_ABS = 1e-3
GOLDEN_ROI_LOGITS_ABS = 1e-3
GOLDEN_STEP_LOGITS_ABS = 1e-3

# Prefix reuse runs the same arithmetic in other chunks: sums in another order, logits to about 10.
REUSE_LOGITS_ABS = 1e-4
# Several sequences in one batch: the same sums by kernels for more rows; logits to about 10.
BATCH_LOGITS_ABS = 1e-4
# The same sums of logits to about 10, and a sigmoid whose slope is at most a quarter.
LOOK_MAP_ABS = 1e-5
# Memory of another sequence, measured against planned: pages of 4 kB and rows that no token reaches, a few percent.
FURTHER_SEQUENCE_SHARE = 0.1
# Estimated over measured peak memory of a process that answers: 0.95 to 1.06 over pictures of 64 to 12,000 px.
PLANNED_PEAK_SHARE = 0.1
# With keys and values in 8 bits, where a last bit of a row may become another code: as for reuse.
BATCH_CODES_LOGITS_ABS = 2e-2

# Normalised pixels reach 2.6; one step of a byte is 0.013. Equal bytes leave only float32 rounding.
PIXEL_VALUES_ABS = 1e-6

# The same float32 formula in another order of operations; values to about 10.
SAME_MATH_ABS = 2e-5
# Four layers of it, with other attention kernels, against transformers; logits to about 10.
TRANSFORMERS_LOGITS_ABS = 1e-4

# Two powers in float32 that lie one unit in the last place apart, and a scaling's few operations after them.
ROPE_FREQUENCY_RELATIVE = 2.5e-7
# Cosines of the same angles, one correctly rounded and one within a unit in the last place, times up to 1.4.
ROPE_TABLE_ABS = 2e-7

# Four layers of the same arithmetic in two libraries, sums in another order; values up to about 10.
PARITY_ABS = 5e-5
# fp16 keeps 11 bits: 5e-3 at a value of 10, and sums of such errors over four layers.
PARITY_FP16_ABS = 2e-2
# The same after norms in which one channel is nearly everything; logits and scores to about 4.
MASSIVE_LOGITS_ABS = 2e-2
MASSIVE_SCORES_ABS = 2e-2

# A GPU sums in another order, and TF32 may be on by default; not measured yet on a device.
CUDA_LOGITS_ABS = 1e-2

# A mean over 560 cells whose logits may lie 1e-3 from the official ones; gradients as shares of a tensor's largest.
GOLDEN_LOSS_ABS = 1e-4
GOLDEN_GRADIENT_SHARE = 1e-3

# Six layers of the same float32 arithmetic under two masks; hidden states to about 10.
PACKED_LOGITS_ABS = 5e-5
# Five quintic iterations bring singular values between these; the smallest of a random matrix lag behind.
MUON_SINGULAR_VALUES = 0.05, 1.4
# An engine in fp16 against ONNX Runtime in fp16, on a tiny model whose logits are of order 1: other kernels sum in
# another order. Chosen from the rounding of fp16 (5e-4) over its layers; no engine has been run yet.
ENGINE_LOGITS_ABS = 2e-2
# Blocks of integers times float32, against the same numbers multiplied out: sums in another order.
BLOCKS_ABS = 1e-4
# The same with activations in blocks of 8 bits too, as ONNX Runtime answers: a share of the largest value.
INT8_ACTIVATIONS_SHARE = 5e-2
# A tower in bf16, 8 bits of mantissa in every step: relative error of its results. Small random ones have 0.6 to 1.3 %.
BF16_TOWER_SHARE = 3e-2
# Two libraries that round activations in the same blocks: a number near a tie goes up in one and down in the other; a
# share of the largest value.
SAME_ROUNDING_SHARE = 1e-2
# Seven steps of at most 5e-4 per weight on gradients that are summed in another order; 1.2e-7 was seen. Steps on other
# pairs, or divided by other counts, move weights by 2e-3.
SPLIT_STEP_ABS = 1e-5
# The native resize has Pillow's fixed-point sums. A compiler may round a filter's weight in its last of 22 bits to the
# other side, which moves a byte by one now and then.
NATIVE_PIXEL_STEPS = 1
NATIVE_EQUAL_SHARE = 0.999

# DCT scaling keeps a block's lowest frequencies where a box filter takes means: a few of 255 steps on a lively picture.
DCT_SCALING_MEAN_STEPS = 4
# Features of the small tower, of order 1 to 8, kept in half precision: half of its last place.
HALF_PRECISION_ABS = 4e-3

# Mean difference, of 255, of a rendered scene between releases of the font library: edges of its few digits.
FONT_RENDERING_MEAN = 0.5

# A float's last digit may choose the next of 127 codes: a hundredth of a row's largest entry, through two layers.
CODES_HIDDEN_ABS = 2e-2
# The same of logits through four layers.
REUSE_CODES_LOGITS_ABS = 2e-2

# A product of rank 4 to 8 in float32, summed by two libraries, beside the matrix's largest entry.
MERGED_RELATIVE = 1e-6

# Normal numbers up to 5, by way of float32 logarithms, roots and cosines of another library: a last place or two.
DRAWN_WEIGHTS_ABS = 1e-6

# float32 positions up to 70 between whole ones, spaced by another order of a product and a sum.
FRACTIONAL_POSITION_ABS = 8e-6

# A flat colour of 40 to 200 after a lossy video codec and its 8-bit YUV; the next to an edge, and in a picture that was
# scaled besides.
VIDEO_COLOUR_ABS = 12
VIDEO_SCALED_COLOUR_ABS = 25
# Times in a video file are whole milliseconds, or ticks of its own clock.
VIDEO_TIME_S = 0.002

# Official outputs of small Qwen models. Seen by an independent recomputation: towers 2.3e-6, gate scores 2.7e-7.
GOLDEN_VISION_ABS = 1e-4
GOLDEN_GATE_SCORE_ABS = 1e-5
# A loss of an official Qwen model and its gradients, in shares; 3e-7 was seen. Weights that are drawn again from their
# seeds are within 5e-7 of the official ones.
GOLDEN_LOSS_RELATIVE = 1e-5
# Attention to a picture, at most 1, of several questions at once: the same sums in another order; 3e-7 seen.
ATTENTION_ABS = 1e-5

# Products and attention of decode steps against the same in float64: sums of up to 640 numbers in float32; 7e-7 of the
# largest, and 5e-7, seen.
STEP_PRODUCT_RELATIVE = 5e-6
STEP_ATTENTION_ABS = 5e-6

# The same model with channels of zeros: six layers of sums in another order. Logits to 14, 7e-6 seen; scores of a gate,
# at most 1, 1e-7 seen.
WIDENED_LOGITS_ABS = 1e-4
WIDENED_GATE_SCORE_ABS = 5e-6
