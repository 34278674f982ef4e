#pragma once

// Makes a declaration callable by other objects: everything is compiled with -fvisibility=hidden.
#define REFINEDET_EXPORT __attribute__((visibility("default")))
