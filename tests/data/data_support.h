// Files and stores from literals, and errors by their words.
#pragma once

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "data/token_store.h"
#include "kernels/core/error.h"
#include "tests/support/temp_folder.h"

namespace sluice::test {

inline void write_file(const std::string& path, const std::string& bytes) {
  std::filesystem::create_directories(std::filesystem::path(path).parent_path());
  std::ofstream(path, std::ios::binary) << bytes;
}

// Runs `body`, which must throw `E` with a message that holds every word.
template <class E>
void expect_error(const std::function<void()>& body, const std::vector<std::string>& words) {
  try {
    body();
  } catch (const E& error) {
    for (const std::string& word : words)
      EXPECT_NE(std::string(error.what()).find(word), std::string::npos)
          << "\"" << error.what() << "\" does not say \"" << word << "\"";
    return;
  } catch (const std::exception& error) {
    FAIL() << "another error: " << error.what();
  }
  FAIL() << "no error";
}

// While it lives no file can grow beyond `bytes`: as a full disk, without one.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    ::getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit{.rlim_cur = bytes, .rlim_max = before_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }

 private:
  rlimit before_{};
  void (*handler_)(int);
};

inline TokenStoreHeader byte_header() {
  const ByteTokenizer tokenizer;
  TokenStoreHeader header;
  header.vocab_size = tokenizer.vocab_size();
  header.tokenizer = tokenizer.name();
  header.tokenizer_hash = tokenizer.hash();
  header.end_of_document = tokenizer.end_of_document();
  return header;
}

inline TokenStoreHeader plain_header(int64_t vocab_size, int32_t end_of_document) {
  TokenStoreHeader header;
  header.vocab_size = vocab_size;
  header.tokenizer = "plain";
  header.tokenizer_hash = "0";
  header.end_of_document = end_of_document;
  return header;
}

using Documents = std::vector<std::vector<int32_t>>;

// Documents are given without their end marks.
inline void write_store(const std::string& path, const TokenStoreHeader& header,
                        const Documents& documents) {
  TokenStoreWriter writer(header);
  for (const auto& document : documents) writer.add_document(document);
  writer.finish(path);
}

inline void write_text_store(const std::string& path, const std::vector<std::string>& texts) {
  Documents documents;
  for (const std::string& text : texts) ByteTokenizer().encode(text, documents.emplace_back());
  write_store(path, byte_header(), documents);
}

// All documents without their end marks.
inline Documents read_documents(const std::string& path) {
  TokenStore store(path);
  Documents documents;
  for (int64_t d = 0; d < store.num_documents(); ++d) {
    const int64_t begin = store.doc_offsets()[size_t(d)];
    const int64_t count = store.doc_offsets()[size_t(d) + 1] - begin;
    auto& document = documents.emplace_back(size_t(count));
    store.read(begin, count, document.data());
    EXPECT_EQ(document.back(), store.header().end_of_document);
    document.pop_back();
  }
  return documents;
}

inline std::vector<std::string> read_texts(const std::string& path) {
  std::vector<std::string> texts;
  for (const auto& document : read_documents(path))
    texts.push_back(ByteTokenizer().decode(document));
  return texts;
}

}  // namespace sluice::test
