# SPDX-License-Identifier: Apache-2.0
"""mneme-lab: experiments on how a language model's loss falls as its memory grows."""
