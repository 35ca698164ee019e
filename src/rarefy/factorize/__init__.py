# SPDX-License-Identifier: Apache-2.0
"""Layers as products of smaller layers: low rank, separable kernels, tensor decompositions."""
