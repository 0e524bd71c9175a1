#include "wmma.h"
