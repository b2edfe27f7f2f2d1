// mneme.h needs nothing before it.
#include "mneme.h"
