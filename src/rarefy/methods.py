# SPDX-License-Identifier: Apache-2.0
"""The explicit list of methods: name in a recipe, where it is defined, one line about it."""

METHODS: dict[str, tuple[str, str]] = {
    "prune-weights": (
        "rarefy.prune.prune_weights:PruneWeights",
        "set the least important weights to zero, once or step by step",
    ),
    "prune-by-inputs": (
        "rarefy.prune.prune_by_inputs:PruneByInputs",
        "weights go by the inputs that they see, the others make up for them (SparseGPT, Wanda)",
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
        "learn answers, features and attention from the original or from several other teachers",
    ),
    "mutual-learning": (
        "rarefy.distill.mutual:MutualLearning",
        "several copies learn together and from each other, without a trained teacher (Zhang et al. 2018)",
    ),
    "distill-generator": (
        "rarefy.distill.generator:DistillGenerator",
        "a small generator of pictures learns from two larger ones that learn on meanwhile (Ren et al. 2021)",
    ),
    "distill-without-data": (
        "rarefy.synthesize.without_data:DistillWithoutData",
        "inputs are made from recorded activations or batch norms, and answers learnt (Lopes et al. 2017)",
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
    "dynamic-int8": (
        "rarefy.quantize.dynamic_int8:DynamicInt8",
        "8-bit integer weights, activations rounded to 8 bits while the network runs; needs no data",
    ),
    "weight-only": (
        "rarefy.quantize.weight_only:WeightOnly",
        "weights of 4 or 8 bits with a scale for every few of them; activations stay float",
    ),
    "static-int8": (
        "rarefy.quantize.static_int8:StaticInt8",
        "8-bit integer weights and activations, ranges from calibration data",
    ),
    "auto-int8": (
        "rarefy.quantize.auto_int8:AutoInt8",
        "static int8 in which the layers that hurt most go back to float until a loss bound holds",
    ),
    "quantization-aware-training": (
        "rarefy.quantize.quantization_aware_training:QuantizationAwareTraining",
        "train through the rounding of weights and activations to 2 to 8 bits: LSQ, PACT, straight-through",
    ),
    "equalise": (
        "rarefy.quantize.equalise:Equalise",
        "fold batch norms and give neighbouring layers' channels equal ranges; the function stays",
    ),
    "data-free-int8": (
        "rarefy.quantize.data_free_int8:DataFreeInt8",
        "int8 without data: ranges from batch norms, equalised weights, corrected biases (Nagel et al. 2019)",
    ),
    "reconstruct": (
        "rarefy.quantize.reconstruct:Reconstruct",
        "few-bit weights without labels: roundings learned block by block (AdaRound, BRECQ, QDrop)",
    ),
    "smooth-quant": (
        "rarefy.quantize.smooth_quant:SmoothQuant",
        "outliers of activations move through layer norms into the weights behind (Xiao et al. 2022)",
    ),
    "split-outliers": (
        "rarefy.quantize.split_outliers:SplitOutliers",
        "channels with the largest weights become two of half the size (Zhao et al. 2019)",
    ),
    "gptq": (
        "rarefy.quantize.gptq:GPTQ",
        "weights rounded column by column, each error made good by the columns behind (Frantar et al. 2022)",
    ),
    "half-precision": (
        "rarefy.quantize.half_precision:HalfPrecision",
        "weights stored as float16 or bfloat16",
    ),
    "factorize": (
        "rarefy.factorize.factorize:Factorize",
        "layers become sequences of smaller ones: low rank, separable kernels, Tucker, CP, tensor trains",
    ),
    "thinet": (
        "rarefy.prune.thinet:Thinet",
        "channels whose contributions to the next layer nearly cancel go (Luo et al. 2017)",
    ),
    "lasso-channels": (
        "rarefy.prune.lasso_channels:LassoChannels",
        "LASSO chooses channels, least squares refits the next layer (He et al. 2017)",
    ),
    "merge-neurons": (
        "rarefy.prune.merge_neurons:MergeNeurons",
        "units that follow another one on calibration data are merged into it",
    ),
    "similar-neurons": (
        "rarefy.prune.similar_neurons:SimilarNeurons",
        "units with alike weights are merged, without data (Srinivas, Babu 2015)",
    ),
    "diverse-neurons": (
        "rarefy.prune.diverse_neurons:DiverseNeurons",
        "a diverse subset of units is drawn, the others fused into it (Mariet, Sra 2016)",
    ),
    "prune-layers": (
        "rarefy.prune.prune_layers:PruneLayers",
        "residual blocks and transformer layers that matter least become the identity",
    ),
    "layer-drop": (
        "rarefy.distill.layer_drop:LayerDrop",
        "train with layers dropped at random, so that any depth works (Fan et al. 2019)",
    ),
    "sparsify": (
        "rarefy.prune.sparsify:Sparsify",
        "train under a penalty that empties weights, channels or blocks; cut what is empty",
    ),
    "eagle-eye": (
        "rarefy.prune.eagle_eye:EagleEye",
        "search how much of each layer goes, judged after batch norms are measured anew (Li et al. 2020)",
    ),
    "preserve-features": (
        "rarefy.prune.preserve_features:PreserveFeatures",
        "a cut network learns from the original's answers and feature maps",
    ),
    "prune-transformer": (
        "rarefy.prune.prune_transformer:PruneTransformer",
        "heads and feed-forward neurons go by the gradients of their gates (Michel 2019; Kwon 2022)",
    ),
    "entropy-penalty": (
        "rarefy.quantize.entropy_penalty:EntropyPenalty",
        "train weights on learned grids under the price of their bits (Oktay et al. 2020)",
    ),
    "rate-distortion": (
        "rarefy.quantize.rate_distortion:RateDistortion",
        "round weights so that bits and harm together are least, one slope for all layers, no training",
    ),
    "auto-rate-distortion": (
        "rarefy.quantize.auto_rate_distortion:AutoRateDistortion",
        "rate-distortion rounding in as few bits as a bound on the loss allows",
    ),
    "soft-weight-sharing": (
        "rarefy.quantize.soft_weight_sharing:SoftWeightSharing",
        "weights gather around the means of a learned mixture of normals (Ullrich et al. 2017)",
    ),
    "single-level": (
        "rarefy.quantize.single_level:SingleLevel",
        "clusters are frozen in turn, those that lose least first, the rest trains (Xu et al. 2018)",
    ),
    "coreset-filters": (
        "rarefy.quantize.coreset_filters:CoresetFilters",
        "filters become mixtures of a few that k-means keeps, without training (Dubey et al. 2018)",
    ),
    "tetris": (
        "rarefy.prune.tetris:Tetris",
        "rows and columns are reordered so that whole blocks of small weights can go (Ji et al. 2018)",
    ),
    "bayesian-compression": (
        "rarefy.quantize.bayesian:BayesianCompression",
        "noise on units, learned with the weights, says what goes and how many bits stay (Louizos 2017)",
    ),
}
