// SPDX-License-Identifier: Apache-2.0
/* mneme.h needs nothing before it. */
#include "mneme.h"
