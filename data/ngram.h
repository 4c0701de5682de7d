// The baseline that a byte model must beat: an interpolated model of bytes with two bytes of
// context.
//
// p3(c | a b) = (n(a b c) + u(a b) p2(c | b)) / (n(a b) + u(a b)), and likewise p2 from p1 and p1
// from the uniform 1 / 257: Witten and Bell, "The zero-frequency problem", IEEE Trans. Information
// Theory 37, 1991, method C. n counts, u is the number of distinct successors.
//
// What is counted is what EvalRows counts for a model: every token of a document but its first is
// predicted, its end mark included, from the tokens before it in the same document (so its second
// token has one byte of context). The bits of all these are summed; bits per byte divides them by
// the number of predicted bytes, end marks not counted.
#pragma once

#include <cstdint>
#include <vector>

#include "data/token_store.h"

namespace sluice {

struct NgramScore {
  double bits = 0;      // of all predicted tokens
  int64_t targets = 0;  // predicted tokens, end marks included
  int64_t bytes = 0;    // predicted tokens without end marks
  double bits_per_byte() const { return bits / double(bytes); }
};

class ByteNgram {
 public:
  static constexpr int64_t kVocab = 257;

  ByteNgram();
  // Counts a store's documents; may be called for several. Throws UsageError unless the store was
  // made by the byte tokenizer.
  void train(TokenStore& store);
  // Of token `next` after `before` and, before that, `before2` (-1: the document begins there).
  double probability(int32_t before2, int32_t before, int32_t next) const;
  NgramScore score(TokenStore& store) const;

 private:
  struct Context {
    int64_t total = 0;     // n of the context
    int64_t distinct = 0;  // u
  };
  static void count(Context& context, uint32_t& counter);
  static double interpolate(const Context& context, uint32_t count, double lower);

  std::vector<uint32_t> trigrams_;         // (257, 257, 257)
  std::vector<uint32_t> bigrams_;          // (257, 257)
  std::vector<uint32_t> unigrams_;         // (257)
  std::vector<Context> trigram_contexts_;  // (257, 257)
  std::vector<Context> bigram_contexts_;   // (257)
  Context unigram_context_;
};

}  // namespace sluice
