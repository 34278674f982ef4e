#include "library.h"

#include "build_config.h"

const char* refinedet_version() { return REFINEDET_VERSION; }
