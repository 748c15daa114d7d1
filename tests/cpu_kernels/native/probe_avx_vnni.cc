// avx_vnni.cc beside the other sets: its vector operations are those of AVX2.
#include "avx_vnni.cc"  // NOLINT(bugprone-suspicious-include)
