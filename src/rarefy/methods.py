# SPDX-License-Identifier: Apache-2.0
"""The explicit list of methods: name in a recipe, where it is defined, one line about it."""

METHODS: dict[str, tuple[str, str]] = {
    "prune-weights": (
        "rarefy.prune.prune_weights:PruneWeights",
        "set the least important weights to zero, once or step by step",
    ),
    "prune-connections": (
        "rarefy.prune.prune_connections:PruneConnections",
        "learn connections, prune by standard deviation, retrain (Han et al. 2015)",
    ),
    "prune-channels": (
        "rarefy.prune.prune_channels:PruneChannels",
        "take out the least important channels, neurons and heads; the network becomes smaller and faster",
    ),
    "finetune": ("rarefy.distill.finetune:Finetune", "train what is left on the labels"),
    "reestimate-norms": (
        "rarefy.distill.finetune:ReestimateNorms",
        "measure batch-norm statistics anew, without labels",
    ),
    "distill": (
        "rarefy.distill.distill:Distill",
        "train on the softened answers of the untouched original",
    ),
    "share-weights": (
        "rarefy.quantize.share_weights:ShareWeights",
        "k-means clusters of weights share one trained value",
    ),
    "vector-quantization": (
        "rarefy.quantize.vector_quantization:VectorQuantization",
        "weights put together from table rows found by k-means: product, residual, signs",
    ),
    "hash-weights": (
        "rarefy.quantize.hashed_weights:HashWeights",
        "a hash function decides which weights share a value",
    ),
    "fixed-point": (
        "rarefy.quantize.fixed_point:FixedPoint",
        "weights as b-bit integers times one scale",
    ),
    "static-int8": (
        "rarefy.quantize.static_int8:StaticInt8",
        "8-bit integer weights and activations, ranges from calibration data",
    ),
    "half-precision": (
        "rarefy.quantize.half_precision:HalfPrecision",
        "weights stored as float16 or bfloat16",
    ),
    "factorize": (
        "rarefy.factorize.factorize:Factorize",
        "layers become sequences of smaller ones: low rank, separable kernels, Tucker, CP, tensor trains",
    ),
}
