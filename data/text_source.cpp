#include "data/text_source.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <system_error>

#include "kernels/core/error.h"

namespace sluice {

namespace fs = std::filesystem;

namespace {

constexpr size_t kMaxDocument = size_t{1} << 30;
constexpr size_t kMaxLine = size_t{1} << 30;
constexpr size_t kReadBytes = size_t{1} << 20;
constexpr int kMaxJsonDepth = 64;

SourceFile source_file(const std::string& path) {
  if (path.ends_with(".jsonl.gz")) return {path, true, Compression::gzip};
  if (path.ends_with(".jsonl.zst")) return {path, true, Compression::zstd};
  return {path, path.ends_with(".jsonl"), Compression::none};
}

// What cannot be read as it is.
bool is_opaque(const std::string& path) {
  static constexpr std::array<const char*, 6> kSuffixes = {".gz",  ".zst", ".xz",
                                                           ".bz2", ".zip", ".parquet"};
  return source_file(path).compression == Compression::none &&
         std::any_of(kSuffixes.begin(), kSuffixes.end(),
                     [&](const char* suffix) { return path.ends_with(suffix); });
}

bool wanted(const std::string& path, const std::vector<std::string>& suffixes) {
  if (is_opaque(path)) return false;
  return suffixes.empty() || std::any_of(suffixes.begin(), suffixes.end(), [&](const auto& suffix) {
           return path.ends_with(suffix);
         });
}

void list_folder(const std::string& folder, const std::vector<std::string>& suffixes,
                 std::vector<std::string>& paths) {
  std::error_code error;
  fs::recursive_directory_iterator entry(folder, error);
  for (; !error && entry != fs::recursive_directory_iterator(); entry.increment(error)) {
    if (entry->path().filename().string().front() == '.') {
      entry.disable_recursion_pending();
    } else if (fs::is_regular_file(entry->symlink_status()) &&
               wanted(entry->path().string(), suffixes)) {
      paths.push_back(entry->path().string());
    }
  }
  if (error) throw IoError(fmt::format("{}: cannot list the folder: {}", folder, error.message()));
}

// Bytes of a file, read ahead as far as they are asked for.
class ReadAhead {
 public:
  explicit ReadAhead(const SourceFile& source)
      : bytes_(open_bytes(source.path, source.compression)) {}

  // What lies ahead: at least `bytes` of it, unless the file ends before.
  std::string_view ahead(size_t bytes) {
    while (buffer_.size() - begin_ < bytes && !at_end_) read_more();
    return std::string_view(buffer_).substr(begin_);
  }
  void skip(size_t bytes) { begin_ = std::min(begin_ + bytes, buffer_.size()); }

 private:
  void read_more() {
    buffer_.erase(0, begin_);
    begin_ = 0;
    const size_t size = buffer_.size();
    buffer_.resize(size + kReadBytes);
    const size_t count = bytes_->read(buffer_.data() + size, kReadBytes);
    buffer_.resize(size + count);
    at_end_ = count == 0;
  }

  std::unique_ptr<ByteSource> bytes_;
  std::string buffer_;
  size_t begin_ = 0;
  bool at_end_ = false;
};

// Takes one string out of a JSON object, whatever else is in it, without building the object.
class FieldReader final : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit FieldReader(const std::string& field) : field_(field) {}

  std::optional<std::string> text;
  std::string error;

  bool null() override { return value(); }
  bool boolean(bool) override { return value(); }
  bool number_integer(number_integer_t) override { return value(); }
  bool number_unsigned(number_unsigned_t) override { return value(); }
  bool number_float(number_float_t, const string_t&) override { return value(); }
  bool binary(binary_t&) override { return value(); }
  bool string(string_t& string) override {
    if (depth_ == 1 && in_field_) {
      text = std::move(string);
      return true;
    }
    return value();
  }
  bool start_object(size_t) override {
    if (depth_ > 0 && !value()) return false;
    return deeper();
  }
  bool start_array(size_t) override { return value() && deeper(); }
  bool end_object() override { return depth_-- > 0; }
  bool end_array() override { return depth_-- > 0; }
  bool key(string_t& key) override {
    if (depth_ > 1) return true;
    in_field_ = key == field_;
    return !(in_field_ && text) || refuse("two of \"" + field_ + "\"");
  }
  bool parse_error(size_t, const std::string&, const nlohmann::json::exception& failure) override {
    const std::string what = failure.what();
    const size_t id_end = what.find("] ");  // of nlohmann's own name for the error
    return refuse(id_end == std::string::npos ? what : what.substr(id_end + 2));
  }

 private:
  // A value that is not the text.
  bool value() {
    if (depth_ == 0) return refuse("expected an object");
    return !(depth_ == 1 && in_field_) || refuse("\"" + field_ + "\" is not a string");
  }
  bool deeper() {
    depth_ += 1;
    return depth_ <= kMaxJsonDepth ||
           refuse(fmt::format("nested deeper than {} levels", kMaxJsonDepth));
  }
  bool refuse(const std::string& why) {
    error = why;
    return false;
  }

  const std::string& field_;
  int depth_ = 0;
  bool in_field_ = false;
};

// The text of one line.
std::string parse_line(std::string_view line, const std::string& where, const std::string& field) {
  FieldReader reader(field);
  if (!nlohmann::json::sax_parse(line.begin(), line.end(), &reader))
    throw DataError(fmt::format("{}: {}", where, reader.error));
  if (!reader.text)
    throw DataError(fmt::format("{}: expected an object with a string \"{}\"", where, field));
  return std::move(*reader.text);
}

// The next line without its end, or nothing at the file's end.
std::optional<std::string_view> next_line(ReadAhead& file, const std::string& where) {
  size_t searched = 0;
  for (size_t wanted = 1;; wanted = searched + 1) {
    const std::string_view ahead = file.ahead(wanted);
    const size_t end = ahead.find('\n', searched);
    if (end != std::string_view::npos) return ahead.substr(0, end);
    if (ahead.size() < wanted) {  // the file's end
      if (ahead.empty()) return std::nullopt;
      return ahead;
    }
    if (ahead.size() > kMaxLine)
      throw DataError(fmt::format("{}: a line of more than {} bytes", where, kMaxLine));
    searched = ahead.size();
  }
}

void visit_jsonl(const SourceFile& source, const DocumentOptions& options,
                 const std::function<void(std::string_view)>& visit) {
  ReadAhead file(source);
  for (int64_t number = 1;; ++number) {
    const std::string where = fmt::format("{}:{}", source.path, number);
    const std::optional<std::string_view> line = next_line(file, where);
    if (!line) return;
    if (line->find_first_not_of(" \t\r") != std::string_view::npos) {
      const std::string text = parse_line(*line, where, options.jsonl_field);
      std::string_view rest = text;
      const size_t limit = options.piece_bytes > 0 ? size_t(options.piece_bytes) : kMaxLine;
      while (rest.size() > limit) {
        const size_t length = cut_length(rest, limit);
        visit(rest.substr(0, length));
        rest.remove_prefix(length);
      }
      visit(rest);
    }
    file.skip(line->size() + 1);
  }
}

void visit_text(const SourceFile& source, int64_t piece_bytes,
                const std::function<void(std::string_view)>& visit) {
  ReadAhead file(source);
  const size_t limit = piece_bytes > 0 ? size_t(piece_bytes) : kMaxDocument;
  while (true) {
    const std::string_view ahead = file.ahead(limit + 1);
    if (ahead.size() <= limit) return visit(ahead);
    if (piece_bytes == 0) {
      throw UsageError(
          fmt::format("{}: a document of more than {} bytes; cut it with "
                      "--split-documents BYTES",
                      source.path, kMaxDocument));
    }
    const size_t length = cut_length(ahead, limit);
    visit(ahead.substr(0, length));
    file.skip(length);
  }
}

}  // namespace

std::vector<SourceFile> list_sources(const std::vector<std::string>& inputs,
                                     const std::vector<std::string>& suffixes) {
  std::vector<SourceFile> files;
  for (const std::string& input : inputs) {
    std::error_code error;
    const fs::file_status status = fs::status(input, error);
    if (!fs::exists(status)) throw IoError(fmt::format("{}: no such file or folder", input));
    std::vector<std::string> paths;
    if (fs::is_directory(status)) {
      list_folder(input, suffixes, paths);
      std::sort(paths.begin(), paths.end());
      if (paths.empty())
        throw UsageError(fmt::format("{}: no text files in this folder that match", input));
    } else {
      if (is_opaque(input)) {
        throw UsageError(fmt::format(
            "{}: a compressed file; decompress it first (only .jsonl.gz and .jsonl.zst are read "
            "as they are)",
            input));
      }
      if (!fs::is_regular_file(status))
        throw IoError(fmt::format("{}: neither a regular file nor a folder", input));
      paths.push_back(input);
    }
    for (const std::string& path : paths) files.push_back(source_file(path));
  }
  return files;
}

size_t cut_length(std::string_view text, size_t limit) {
  SLUICE_CHECK(limit > 0 && text.size() > limit, "cut ", text.size(), " bytes at ", limit);
  const size_t line_end = text.substr(0, limit).rfind('\n');
  if (line_end != std::string_view::npos && line_end + 1 > limit - limit / 4) return line_end + 1;
  // Continuation bytes are 10xxxxxx, at most three of them.
  size_t length = limit;
  while (length > 1 && limit - length < 3 && (uint8_t(text[length]) & 0xc0) == 0x80) --length;
  return (uint8_t(text[length]) & 0xc0) == 0x80 ? limit : length;
}

void visit_documents(const SourceFile& file, const DocumentOptions& options,
                     const std::function<void(std::string_view)>& visit) {
  if (file.jsonl) {
    visit_jsonl(file, options, visit);
  } else {
    visit_text(file, options.piece_bytes, visit);
  }
}

}  // namespace sluice
