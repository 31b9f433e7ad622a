# SPDX-License-Identifier: Apache-2.0
"""Bayesian optimisation of what is calibrated on and what a unit's worth is measured by."""
