// The one team of the process, at work on XLA's thread pool.
#ifndef CPU_KERNELS_THREAD_POOL_H_
#define CPU_KERNELS_THREAD_POOL_H_

#include <cstdint>
#include <utility>

#include "team.h"
#include "xla/ffi/api/ffi.h"

namespace realm {

// Never destroyed: a helper may outlive the statics of the process by a moment.
inline Team& TheTeam() {
  static Team* team = new Team;
  return *team;
}

// The helpers of a call on `threads` threads, 0 for all of XLA's pool.
inline int Helpers(int64_t threads, const xla::ffi::ThreadPool& pool) {
  return static_cast<int>(threads > 0 ? threads : pool.num_threads()) - 1;
}

// Calls chunk(i) once for each i < chunks, on this thread and up to `helpers` others.
template <class Chunk>
void ForEachChunk(uint32_t chunks, int helpers, xla::ffi::ThreadPool& pool, const Chunk& chunk) {
  const auto call = [](const void* context, uint32_t i) { (*static_cast<const Chunk*>(context))(i); };
  TheTeam().Run(chunks, helpers, call, &chunk, [&pool](auto task) { pool.Schedule(std::move(task)); });
}

}  // namespace realm

#endif  // CPU_KERNELS_THREAD_POOL_H_
