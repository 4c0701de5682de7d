// The chunks of a chunked recurrence: M = ceil(T / Q) of them a row, the last may be shorter.
#pragma once

#include <algorithm>
#include <cstdint>

namespace sluice {

constexpr int64_t num_chunks(int64_t tokens, int64_t chunk) { return (tokens + chunk - 1) / chunk; }

// Tokens [begin, end) of a row. A document starts in the chunk iff doc_begin[end - 1] >= begin.
struct ChunkSpan {
  int64_t begin = 0;
  int64_t end = 0;

  constexpr ChunkSpan(int64_t index, int64_t chunk, int64_t tokens)
      : begin(index * chunk), end(std::min(tokens, (index + 1) * chunk)) {}
  constexpr int64_t size() const { return end - begin; }
};

}  // namespace sluice
