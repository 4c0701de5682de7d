// Packing: a store as an endless stream of documents, cut into rows.
//
// The stream is epoch after epoch, each holding every document once, back to back, in an order
// shuffled by (seed, store, epoch). A row of L tokens begins at stream position r * L and reads
// L + 1 tokens: consecutive rows overlap by one, so every token of an epoch is an input exactly
// once. A token's target is its successor in the document; a document's last token, its end mark,
// has none. A row that begins inside a document sees it from there (doc_begin = 0), unless it goes
// on from the state of the row before.
#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <span>
#include <vector>

#include "data/batch.h"
#include "data/token_store.h"

namespace sluice {

// A stretch of one document in the stream.
struct Segment {
  int64_t token = 0;  // first token, in the store
  int64_t count = 0;
  bool ends = false;   // holds the document's last token
  int64_t before = 0;  // tokens of the document before the first
};

// The documents of a store in one order, back to back.
class DocumentOrder {
 public:
  // As stored.
  explicit DocumentOrder(const TokenStore& store);
  // Shuffled: a pure function of the arguments and the store's number of documents.
  DocumentOrder(const TokenStore& store, uint64_t seed, int64_t store_index, int64_t epoch);

  // Appends the segments of stream positions [begin, begin + count), which lie in the epoch.
  void segments(int64_t begin, int64_t count, std::vector<Segment>& out) const;

 private:
  void lay_out();

  std::span<const int64_t> offsets_;  // of the store
  std::vector<int64_t> documents_;    // in this order
  std::vector<int64_t> starts_;       // stream position of each, and the number of tokens last
};

// The endless training stream of one store.
class PackedStream {
 public:
  PackedStream(TokenStore& store, uint64_t seed, int64_t store_index)
      : store_(&store), seed_(seed), store_index_(store_index) {}

  std::vector<Segment> segments(int64_t begin, int64_t count);
  // The row of `seq_len` tokens at stream position `begin`. Of the document that it begins in,
  // `seen` tokens at most were in rows before whose state it goes on from: then doc_begin is
  // negative.
  Batch::Row row(int64_t begin, int64_t seq_len, int64_t seen = 0);
  // Its targets, without reading tokens.
  int64_t count_targets(int64_t begin, int64_t seq_len);

 private:
  const DocumentOrder& order(int64_t epoch);

  TokenStore* store_;
  uint64_t seed_;
  int64_t store_index_;
  std::map<int64_t, DocumentOrder> orders_;  // the two epochs used last
};

// A held-out store as consecutive rows in the stored order: every token that has a predecessor in
// its document is a target exactly once. The last row is filled up with tokens that have no target,
// as are rows past it, so that all ranks can take equally many.
class EvalRows {
 public:
  EvalRows(TokenStore& store, int64_t seq_len);

  int64_t num_rows() const { return num_rows_; }
  // Rows from `end_row` on, and behind the store's end, are padding without a target.
  Batch batch(int64_t first_row, int64_t num_rows, SequenceShard shard = {},
              int64_t end_row = std::numeric_limits<int64_t>::max());

  int64_t num_targets() const;  // tokens that are predicted, end marks included
  // Tokens that are predicted and are no end marks. With a byte tokenizer these are bytes: bits per
  // byte = summed loss / ln 2 / num_text_targets().
  int64_t num_text_targets() const;

 private:
  Batch::Row row(int64_t row);

  TokenStore* store_;
  DocumentOrder order_;
  int64_t seq_len_;
  int64_t num_rows_;
};

}  // namespace sluice
