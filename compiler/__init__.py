# SPDX-License-Identifier: Apache-2.0
"""The compiler: recipe, plan, driver, build store and command line."""
