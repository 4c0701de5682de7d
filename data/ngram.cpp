#include "data/ngram.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

#include "kernels/core/error.h"

namespace sluice {

namespace {

constexpr size_t kVocab = size_t(ByteNgram::kVocab);

// Calls visit(before2, before, next) for every predicted token of every document.
template <class Visit>
void visit_targets(TokenStore& store, Visit&& visit) {
  if (store.header().vocab_size != ByteNgram::kVocab || store.header().tokenizer != "byte") {
    throw UsageError(concat(store.path(), ": the 3-gram baseline counts bytes, got a store of the ",
                            store.header().tokenizer, " tokenizer with ", store.header().vocab_size,
                            " ids"));
  }
  const std::span<const int64_t> offsets = store.doc_offsets();
  // Documents may be long: pieces, with the context carried over.
  std::vector<int32_t> piece(size_t{1} << 16);
  for (size_t document = 0; document + 1 < offsets.size(); ++document) {
    int32_t before2 = -1;
    int32_t before = -1;
    for (int64_t begin = offsets[document]; begin < offsets[document + 1];) {
      const int64_t count = std::min(offsets[document + 1] - begin, int64_t(piece.size()));
      store.read(begin, count, piece.data());
      for (int64_t i = 0; i < count; ++i) {
        const int32_t next = piece[size_t(i)];
        if (before >= 0) visit(before2, before, next);
        before2 = before;
        before = next;
      }
      begin += count;
    }
  }
}

size_t bigram(int32_t before, int32_t next) { return size_t(before) * kVocab + size_t(next); }
size_t trigram(int32_t before2, int32_t before, int32_t next) {
  return bigram(before2, before) * kVocab + size_t(next);
}

}  // namespace

ByteNgram::ByteNgram()
    : trigrams_(kVocab * kVocab * kVocab),
      bigrams_(kVocab * kVocab),
      unigrams_(kVocab),
      trigram_contexts_(kVocab * kVocab),
      bigram_contexts_(kVocab) {}

void ByteNgram::count(Context& context, uint32_t& counter) {
  SLUICE_CHECK(counter < std::numeric_limits<uint32_t>::max(), "a count overflows");
  context.total += 1;
  context.distinct += counter == 0 ? 1 : 0;
  counter += 1;
}

void ByteNgram::train(TokenStore& store) {
  visit_targets(store, [this](int32_t before2, int32_t before, int32_t next) {
    count(unigram_context_, unigrams_[size_t(next)]);
    count(bigram_contexts_[size_t(before)], bigrams_[bigram(before, next)]);
    if (before2 < 0) return;
    count(trigram_contexts_[bigram(before2, before)], trigrams_[trigram(before2, before, next)]);
  });
}

double ByteNgram::interpolate(const Context& context, uint32_t count, double lower) {
  if (context.total == 0) return lower;
  return (double(count) + double(context.distinct) * lower) /
         double(context.total + context.distinct);
}

double ByteNgram::probability(int32_t before2, int32_t before, int32_t next) const {
  const double p1 = interpolate(unigram_context_, unigrams_[size_t(next)], 1.0 / double(kVocab));
  const double p2 =
      interpolate(bigram_contexts_[size_t(before)], bigrams_[bigram(before, next)], p1);
  if (before2 < 0) return p2;
  return interpolate(trigram_contexts_[bigram(before2, before)],
                     trigrams_[trigram(before2, before, next)], p2);
}

NgramScore ByteNgram::score(TokenStore& store) const {
  NgramScore score;
  visit_targets(store, [&](int32_t before2, int32_t before, int32_t next) {
    score.bits -= std::log2(probability(before2, before, next));
    score.targets += 1;
    score.bytes += next < 256 ? 1 : 0;
  });
  return score;
}

}  // namespace sluice
