package resource

import "errors"

// MaxName bounds the length of names, in bytes. It is what Kuma's store holds.
const MaxName = 253

// maxLabel is the length of a DNS label (RFC 1035).
const maxLabel = 63

// What can be wrong with a name. The texts complete a sentence that begins with the field.
var (
	ErrNameEmpty      = errors.New("cannot be empty")
	ErrNameCharacters = errors.New("invalid characters. Allowed are digits, lower-case letters, '-' and '_'")
	ErrNameLength     = errors.New("cannot be longer than 253 characters")
	ErrZoneName       = errors.New("must be a DNS label: at most 63 digits, lower-case letters and '-', not beginning or ending with '-'")
)

// CheckName reports what is wrong with the name of a resource, or of its mesh, that is about to be created here:
// ErrNameEmpty, ErrNameCharacters or ErrNameLength. Names that came from other planes follow their own rules.
func CheckName(name string) error {
	if name == "" {
		return ErrNameEmpty
	}
	for i := range len(name) {
		if c := name[i]; !isLabelByte(c) && c != '_' {
			return ErrNameCharacters
		}
	}
	if len(name) > MaxName {
		return ErrNameLength
	}
	return nil
}

// CheckZoneName reports what is wrong with the name of a zone: ErrNameEmpty or ErrZoneName. It is stricter than
// CheckName because a zone's name is the first label of its resources' names and host names on the global.
func CheckZoneName(name string) error {
	if name == "" {
		return ErrNameEmpty
	}
	for i := range len(name) {
		if !isLabelByte(name[i]) {
			return ErrZoneName
		}
	}
	if len(name) > maxLabel || name[0] == '-' || name[len(name)-1] == '-' {
		return ErrZoneName
	}
	return nil
}

func isLabelByte(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c == '-'
}

// ServiceInsightName is the name of the one ServiceInsight that is stored for a mesh, with all its services in it.
func ServiceInsightName(mesh string) string { return "all-services-" + mesh }
