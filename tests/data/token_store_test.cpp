#include "data/token_store.h"

#include <gtest/gtest.h>
#include <hdf5.h>

#include "kernels/core/rng.h"
#include "tests/data/data_support.h"

// HDF5 1.10 leaks a few blocks of its own when it refuses some damaged files. Builds with the leak
// sanitizer look for this name.
extern "C" const char* __lsan_default_suppressions() { return "leak:libhdf5_serial\n"; }

namespace sluice::test {
namespace {

constexpr RngKey kRandom{.seed = 71, .stream = 1};

Documents random_documents(int64_t count, int64_t max_length, int64_t vocab_size, int32_t end) {
  Documents documents;
  uint64_t draw = 0;
  for (int64_t d = 0; d < count; ++d) {
    auto& document = documents.emplace_back(random_below(kRandom, draw++, uint64_t(max_length)));
    for (int32_t& id : document) {
      id = int32_t(random_below(kRandom, draw++, uint64_t(vocab_size) - 1));
      id += id >= end ? 1 : 0;
    }
  }
  return documents;
}

TEST(TokenStore, RoundTripInBothWidths) {
  const TempFolder folder;
  for (const int64_t vocab_size : {int64_t{257}, int64_t{65536}, int64_t{65537}, int64_t{200000}}) {
    const Documents documents = random_documents(200, 2000, vocab_size, 256);  // over 2 blocks
    TokenStoreHeader header = plain_header(vocab_size, 256);
    header.sources = "[\"a\"]";
    write_store(folder / "x.h5", header, documents);
    EXPECT_EQ(read_documents(folder / "x.h5"), documents);
    TokenStore store(folder / "x.h5");
    store.verify();
    EXPECT_EQ(store.header().vocab_size, vocab_size);
    EXPECT_EQ(store.header().tokenizer, "plain");
    EXPECT_EQ(store.header().sources, "[\"a\"]");
    EXPECT_EQ(store.header().content_hash.size(), 32u);
    const StoredType type = Hdf5Reader(folder / "x.h5").dataset("tokens").info().type;
    EXPECT_EQ(type, vocab_size <= 65536 ? StoredType::u16 : StoredType::u32);
  }
}

TEST(TokenStore, AnyRangeThroughASmallCache) {
  const TempFolder folder;
  Documents documents = {std::vector<int32_t>(300'000)};
  for (size_t i = 0; i < documents[0].size(); ++i) documents[0][i] = int32_t(i * 7 % 1000);
  write_store(folder / "x.h5", plain_header(2000, 1999), documents);
  TokenStore store(folder / "x.h5", 0);  // one block
  for (uint64_t draw = 0; draw < 300; ++draw) {
    const int64_t begin = int64_t(random_below(kRandom, 2 * draw, 299'000));
    const int64_t count =
        int64_t(random_below(kRandom, 2 * draw + 1, uint64_t(draw % 3 == 0 ? 150'000 : 500)));
    std::vector<int32_t> part(size_t(std::min(count, 300'000 - begin)));
    store.read(begin, int64_t(part.size()), part.data());
    ASSERT_TRUE(std::equal(part.begin(), part.end(), documents[0].begin() + begin));
  }
  int32_t none = 0;
  EXPECT_THROW(store.read(300'001, 1, &none), Error);
}

TEST(TokenStore, WriterRefusesWhatAReaderWould) {
  const TempFolder folder;
  TokenStoreWriter writer(plain_header(10, 9));
  const auto add = [&](std::vector<int32_t> ids) { writer.add_document(ids); };
  add({1, 2});
  expect_error<DataError>([&] { add({1, 10}); }, {"document 1", "10", "vocabulary of 10"});
  expect_error<DataError>([&] { add({-1}); }, {"-1"});
  expect_error<DataError>([&] { add({9, 1}); }, {"end mark"});
  add({});
  writer.finish(folder / "x.h5");
  EXPECT_EQ(read_documents(folder / "x.h5"), (Documents{{1, 2}, {}}));
  expect_error<UsageError>([&] { TokenStoreWriter(plain_header(10, 9)).finish(folder / "y.h5"); },
                           {folder / "y.h5", "no documents"});
}

// A store whose parts can be wrong one at a time; all hashes but the content's are right.
struct RawStore {
  std::vector<uint16_t> tokens = {1, 2, 9, 3, 9};
  std::vector<int64_t> offsets = {0, 3, 5};
  int64_t version = 1;
  int64_t vocab_size = 10;
  int64_t end = 9;
  bool growing = true;

  void write(const std::string& path) const {
    Hdf5Writer file;
    if (growing) {
      file.create_growing<uint16_t>("tokens", 1 << 16);
      file.append<uint16_t>("tokens", tokens);
    } else {
      file.write("tokens", {int64_t(tokens.size())}, tokens.data());
    }
    file.write("doc_offsets", {int64_t(offsets.size())}, offsets.data());
    file.set_attribute("format_version", version);
    file.set_attribute("vocab_size", vocab_size);
    file.set_attribute("tokenizer", std::string("plain"));
    file.set_attribute("tokenizer_hash", std::string("0"));
    file.set_attribute("end_of_document", end);
    file.set_attribute("sources", std::string("[]"));
    file.set_attribute("content_hash", std::string("0"));
    file.finish_to(path);
  }
};

TEST(TokenStore, HeadersAndOffsetsAreCheckedOnOpening) {
  const TempFolder folder;
  const std::string path = folder / "raw.h5";
  const auto open = [&](const RawStore& raw) {
    raw.write(path);
    TokenStore store(path);
  };
  open({});
  const auto refused = [&](const RawStore& raw, std::vector<std::string> words) {
    words.push_back(path);
    expect_error<DataError>([&] { open(raw); }, words);
  };
  refused({.version = 2}, {"version 2", "reads 1"});
  refused({.vocab_size = 0}, {"vocabulary of 0"});
  refused({.vocab_size = int64_t{1} << 40}, {"vocabulary of"});
  refused({.end = 10}, {"end of document 10"});
  refused({.end = -1}, {"end of document -1"});
  refused({.vocab_size = 70000}, {"/tokens", "u32"});
  refused({.growing = false}, {"/tokens", "chunks of 65536"});
  refused({.offsets = {0, 3, 4}}, {"/doc_offsets", "5 last", "got 0 and 4"});
  refused({.offsets = {1, 3, 5}}, {"/doc_offsets", "expected 0 first"});
  refused({.offsets = {0, 3, 3, 5}}, {"/doc_offsets", "element 2 is 3"});
  refused({.offsets = {0, 4, 3, 5}}, {"/doc_offsets", "element 2 is 3, not above 4"});
  refused({.offsets = {0, 1, 2, 3, 4, 5, 6}}, {"/doc_offsets", "2 to 6"});
  refused({.offsets = {0}}, {"/doc_offsets", "got 1"});
}

// Without checksums a flipped bit that gives another valid token would be read as it is.
TEST(TokenStore, ChecksumsAreDemanded) {
  const TempFolder folder;
  const std::string path = folder / "raw.h5";
  const RawStore raw;
  raw.write(path);
  const hid_t file = H5Fopen(path.c_str(), H5F_ACC_RDWR, H5P_DEFAULT);
  ASSERT_GE(file, 0);
  H5Ldelete(file, "tokens", H5P_DEFAULT);
  const hid_t properties = H5Pcreate(H5P_DATASET_CREATE);
  const hsize_t chunk = 1 << 16, extent = raw.tokens.size(), limit = H5S_UNLIMITED;
  H5Pset_chunk(properties, 1, &chunk);
  const hid_t space = H5Screate_simple(1, &extent, &limit);
  const hid_t dataset =
      H5Dcreate2(file, "tokens", H5T_STD_U16LE, space, H5P_DEFAULT, properties, H5P_DEFAULT);
  H5Dwrite(dataset, H5T_NATIVE_UINT16, H5S_ALL, H5S_ALL, H5P_DEFAULT, raw.tokens.data());
  H5Dclose(dataset);
  H5Sclose(space);
  H5Pclose(properties);
  H5Fclose(file);
  expect_error<DataError>([&] { TokenStore store(path); }, {path, "/tokens", "checksummed"});
}

TEST(TokenStore, TokensAreCheckedWhenRead) {
  const TempFolder folder;
  const std::string path = folder / "raw.h5";
  const auto refused = [&](const RawStore& raw, std::vector<std::string> words) {
    raw.write(path);
    TokenStore store(path);
    std::vector<int32_t> tokens(1);
    words.push_back(path);
    expect_error<DataError>([&] { store.read(0, 1, tokens.data()); }, words);
  };
  refused({.tokens = {1, 2, 9, 10, 9}}, {"element 3 is 10", "vocabulary of 10"});
  refused({.tokens = {1, 65535, 9, 1, 9}}, {"element 1 is 65535"});
  refused({.tokens = {1, 2, 3, 4, 9}}, {"element 2 is 3", "ends a document"});
  refused({.tokens = {1, 9, 9, 4, 9}}, {"element 1 is 9", "inside one"});
  RawStore().write(path);
  TokenStore store(path);
  expect_error<DataError>([&] { store.verify(); }, {path, "content hash", "expected 0"});
}

// The documents of the store at `path`, read and verified in full.
Documents read_verified(const std::string& path) {
  TokenStore(path).verify();
  return read_documents(path);
}

class MutatedStore : public testing::Test {
 protected:
  void SetUp() override {
    documents_ = random_documents(60, 60, 300, 256);
    write_store(folder_ / "good.h5", plain_header(300, 256), documents_);
    bytes_ = read_text(folder_ / "good.h5");
  }
  // True if the mutant is refused; otherwise it must hold what the store held.
  bool refused(const std::string& bytes) {
    write_file(folder_ / "mutant.h5", bytes);
    try {
      EXPECT_EQ(read_verified(folder_ / "mutant.h5"), documents_);
      const TokenStore store(folder_ / "mutant.h5");
      EXPECT_EQ(store.header().vocab_size, 300);
      EXPECT_EQ(store.header().tokenizer, "plain");
      return false;
    } catch (const DataError& error) {
      EXPECT_NE(std::string(error.what()).find("mutant.h5"), std::string::npos) << error.what();
      return true;
    }
  }
  TempFolder folder_;
  Documents documents_;
  std::string bytes_;
};

TEST_F(MutatedStore, TruncationsAreRefused) {
  EXPECT_FALSE(refused(bytes_));
  for (uint64_t draw = 0; draw < 60; ++draw) {
    const size_t length = random_below(kRandom, draw, bytes_.size());
    EXPECT_TRUE(refused(bytes_.substr(0, length))) << length << " of " << bytes_.size();
  }
  EXPECT_TRUE(refused(""));
  EXPECT_TRUE(refused(bytes_.substr(0, bytes_.size() - 1)));
}

TEST_F(MutatedStore, BitFlipsAreNeverSilent) {
  int num_refused = 0;
  for (uint64_t draw = 0; draw < 300; ++draw) {
    std::string mutant = bytes_;
    // Two of three flips fall on metadata: most of the file is one chunk's unused end.
    const size_t tokens_begin = mutant.find(std::string(1000, '\0'));
    const size_t at = draw % 3 == 0 ? random_below(kRandom, draw, mutant.size())
                                    : random_below(kRandom, draw, tokens_begin);
    mutant[at] = char(mutant[at] ^ (1 << draw % 8));
    num_refused += refused(mutant) ? 1 : 0;
  }
  EXPECT_GT(num_refused, 150);
}

TEST(TokenStore, AFullDiskLeavesNothing) {
  const TempFolder folder;
  {
    const FileSizeLimit limit(64 << 10);
    expect_error<IoError>(
        [&] {
          write_store(folder / "x.h5", plain_header(300, 256), {{1, 2, 3}});
        },
        {folder / "x.h5", "bytes needed"});
  }
  EXPECT_TRUE(folder.names().empty());
}

TEST(Tokenizer, BytesAndBack) {
  const std::unique_ptr<Tokenizer> tokenizer = make_tokenizer("byte");
  std::string text;
  for (int byte = 0; byte < 256; ++byte) text += char(byte);
  std::vector<int32_t> ids;
  tokenizer->encode(text, ids);
  ASSERT_EQ(ids.size(), 256u);
  EXPECT_EQ(ids[200], 200);
  EXPECT_EQ(tokenizer->decode(ids), text);
  EXPECT_EQ(tokenizer->decode(std::vector<int32_t>{'a', 256, 'b', 300, -1}),
            "ab\xEF\xBF\xBD\xEF\xBF\xBD");
  EXPECT_EQ(tokenizer->vocab_size(), 257);
  EXPECT_EQ(tokenizer->end_of_document(), 256);
  EXPECT_EQ(tokenizer->hash().size(), 32u);
  expect_error<UsageError>([] { make_tokenizer("bite"); }, {"bite", "byte"});
}

}  // namespace
}  // namespace sluice::test
