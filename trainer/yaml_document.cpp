#include "trainer/yaml_document.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <map>
#include <sstream>

#include "kernels/core/error.h"

namespace sluice {
namespace {

// Position of a byte of the text.
Location location_of_byte(const Source& source, size_t byte) {
  const std::string& text = source.text;
  const auto begin = text.begin();
  const size_t line_begin = byte == 0 ? std::string::npos : text.rfind('\n', byte - 1);
  const size_t column = line_begin == std::string::npos ? byte : byte - line_begin - 1;
  const auto newlines = std::count(begin, begin + std::ptrdiff_t(byte), '\n');
  return {&source, int64_t(newlines) + 1, int64_t(column) + 1};
}

// Bytes of a well-formed UTF-8 sequence that starts here, or 0.
size_t utf8_length(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char first = byte(0);
  if (first < 0x80) return 1;
  const size_t length = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
  if (first < 0xc2 || first > 0xf4 || text.size() < length) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return 0;
  }
  const bool overlong = (first == 0xe0 && byte(1) < 0xa0) || (first == 0xf0 && byte(1) < 0x90);
  const bool beyond = (first == 0xed && byte(1) > 0x9f) || (first == 0xf4 && byte(1) > 0x8f);
  return overlong || beyond ? 0 : length;
}

void check_bytes(const Source& source) {
  const std::string& text = source.text;
  if (int64_t(text.size()) > kMaxYamlBytes) {
    throw UsageError(concat(source.name, ": a configuration has at most ", kMaxYamlBytes,
                            " bytes, this one has ", text.size()));
  }
  size_t i = 0, line_begin = 0;
  int64_t brackets = 0;
  while (i < text.size()) {
    if (text[i] == '\n') line_begin = i + 1, brackets = 0;
    brackets += text[i] == '[' || text[i] == '{';
    if (brackets > kMaxYamlLineBrackets) {
      fail_at(location_of_byte(source, i),
              concat("a line opens at most ", kMaxYamlLineBrackets, " lists and maps"));
    }
    if (int64_t(i - line_begin) >= kMaxYamlLine) {
      fail_at(location_of_byte(source, i), concat("a line has at most ", kMaxYamlLine, " bytes"));
    }
    if (text[i] == '\0') {
      fail_at(location_of_byte(source, i), "a configuration is text, and here is a NUL byte");
    }
    const size_t length = utf8_length(std::string_view(text).substr(i));
    if (length == 0) fail_at(location_of_byte(source, i), "this is not UTF-8");
    i += length;
  }
}

// Builds the tree from the parser's events, within the budgets.
class TreeBuilder : public YAML::EventHandler {
 public:
  TreeBuilder(const Source& source, int64_t column_offset)
      : source_(source), column_offset_(column_offset) {}

  ConfigNode take() { return std::move(root_); }

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (++documents_ > 1)
      fail_at(at(mark), "a configuration is one document, and here a second begins");
  }
  void OnDocumentEnd() override {}

  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    ConfigNode node;
    node.where = at(mark);
    add(std::move(node), anchor);
  }

  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    refuse_tag(mark, tag);
    ConfigNode node;
    node.kind = ConfigNode::Kind::scalar;
    node.where = at(mark);
    node.text = value;
    node.quoted = tag == "!";
    if (value.find('\0') != std::string::npos) fail_at(node.where, "a value holds a NUL character");
    const bool says_null = !node.quoted && (value == "~" || value == "null");
    if (says_null && !expects_key()) node.kind = ConfigNode::Kind::null;
    add(std::move(node), anchor);
  }

  void OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    const auto known = anchors_.find(anchor);
    if (known == anchors_.end()) fail_at(at(mark), "this alias stands inside what it stands for");
    count(known->second.nodes, mark);
    ConfigNode copy = known->second.node;
    place(std::move(copy), known->second.nodes);
  }

  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    open(ConfigNode::Kind::list, mark, tag, anchor);
  }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    open(ConfigNode::Kind::map, mark, tag, anchor);
  }
  void OnSequenceEnd() override { close(); }
  void OnMapEnd() override { close(); }

 private:
  struct Frame {
    ConfigNode node;
    YAML::anchor_t anchor = 0;
    bool has_key = false;
    std::string key;
    Location key_where;
    int64_t nodes = 1;
  };
  struct Anchored {
    ConfigNode node;
    int64_t nodes = 0;
  };

  Location at(const YAML::Mark& mark) const {
    const int64_t offset = mark.line == 0 ? column_offset_ : 0;
    return {&source_, int64_t(mark.line) + 1, int64_t(mark.column) + 1 + offset};
  }

  bool expects_key() const {
    return !frames_.empty() && frames_.back().node.is_map() && !frames_.back().has_key;
  }

  void refuse_tag(const YAML::Mark& mark, const std::string& tag) const {
    if (!tag.empty() && tag != "?" && tag != "!") {
      fail_at(at(mark), "tags are not used here, and this value has '" + shown(tag) + "'");
    }
  }

  void count(int64_t nodes, const YAML::Mark& mark) {
    nodes_ += nodes;
    if (nodes_ > kMaxYamlNodes) {
      fail_at(at(mark), concat("a configuration has at most ", kMaxYamlNodes,
                               " values, counting each use of an alias"));
    }
  }

  void open(ConfigNode::Kind kind, const YAML::Mark& mark, const std::string& tag,
            YAML::anchor_t anchor) {
    refuse_tag(mark, tag);
    if (expects_key()) fail_at(at(mark), "a key is a word, not a list or map");
    if (int64_t(frames_.size()) >= kMaxYamlDepth) {
      fail_at(at(mark), concat("a configuration is nested at most ", kMaxYamlDepth, " deep"));
    }
    count(1, mark);
    Frame frame;
    frame.node.kind = kind;
    frame.node.where = at(mark);
    frame.anchor = anchor;
    frames_.push_back(std::move(frame));
  }

  void close() {
    Frame frame = std::move(frames_.back());
    frames_.pop_back();
    remember(frame.node, frame.anchor, frame.nodes);
    place(std::move(frame.node), frame.nodes);
  }

  // A kept copy is memory like any other: it counts.
  void remember(const ConfigNode& node, YAML::anchor_t anchor, int64_t nodes) {
    if (anchor == 0) return;
    nodes_ += nodes;
    if (nodes_ > kMaxYamlNodes) fail_at(node.where, "too many values under anchors");
    anchors_[anchor] = {node, nodes};
  }

  void add(ConfigNode node, YAML::anchor_t anchor) {
    if (++nodes_ > kMaxYamlNodes) {
      fail_at(node.where, concat("a configuration has at most ", kMaxYamlNodes, " values"));
    }
    remember(node, anchor, 1);
    place(std::move(node), 1);
  }

  void place(ConfigNode node, int64_t nodes) {
    if (frames_.empty()) {
      root_ = std::move(node);
      return;
    }
    Frame& frame = frames_.back();
    frame.nodes += nodes;
    if (frame.node.is_list()) {
      frame.node.children.push_back(std::move(node));
    } else if (frame.has_key) {
      node.key = std::move(frame.key);
      node.key_where = frame.key_where;
      frame.node.children.push_back(std::move(node));
      frame.has_key = false;
    } else {
      take_key(frame, node);
    }
  }

  void take_key(Frame& frame, const ConfigNode& node) {
    if (!node.is_scalar()) fail_at(node.where, "a key is a word, and here is " + describe(node));
    if (node.text == "<<" && !node.quoted) {
      fail_at(node.where, "merge keys (<<) are not supported",
              "write the keys out, or put them into a file and name it with 'base:'");
    }
    if (const ConfigNode* first = frame.node.find(node.text)) {
      fail_at(node.where, concat("duplicate key '", shown(node.text), "', first on line ",
                                 first->key_where.line));
    }
    if (int64_t(frame.node.children.size()) >= kMaxYamlKeys) {
      fail_at(node.where, concat("a map has at most ", kMaxYamlKeys, " keys"));
    }
    frame.has_key = true;
    frame.key = node.text;
    frame.key_where = node.where;
  }

  const Source& source_;
  int64_t column_offset_;
  int64_t documents_ = 0;
  int64_t nodes_ = 0;
  ConfigNode root_ = map_node();
  std::vector<Frame> frames_;
  std::map<YAML::anchor_t, Anchored> anchors_;
};

}  // namespace

ConfigNode parse_yaml(const Source& source, int64_t begin) {
  check_bytes(source);
  std::string text = source.text.substr(size_t(begin));
  int64_t offset = begin;
  if (begin == 0 && text.starts_with("\xef\xbb\xbf")) offset = 3;  // a byte order mark
  std::istringstream stream(text);
  TreeBuilder builder(source, offset);
  try {
    YAML::Parser parser(stream);
    while (parser.HandleNextDocument(builder)) {
    }
  } catch (const YAML::Exception& error) {
    const int64_t shift = error.mark.line == 0 ? offset : 0;
    fail_at({&source, std::max(error.mark.line, 0) + 1, std::max(error.mark.column, 0) + 1 + shift},
            "this is not YAML: " + error.msg);
  }
  return builder.take();
}

std::string read_config_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw IoError("cannot open " + path + ": " + std::strerror(errno));
  std::string text(size_t(kMaxYamlBytes) + 1, '\0');
  errno = 0;
  file.read(text.data(), std::streamsize(text.size()));
  if (file.bad() || errno != 0) throw IoError("cannot read " + path + ": " + std::strerror(errno));
  text.resize(size_t(file.gcount()));
  if (int64_t(text.size()) > kMaxYamlBytes) {
    throw UsageError(concat(path, ": a configuration has at most ", kMaxYamlBytes,
                            " bytes, this file has more"));
  }
  return text;
}

}  // namespace sluice
