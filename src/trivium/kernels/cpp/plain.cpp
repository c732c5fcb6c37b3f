// The level that every processor has: vectors of 4 floats.
#define LANES 4
#define MOST 2
#define LEVEL plain
#include "level.h"
