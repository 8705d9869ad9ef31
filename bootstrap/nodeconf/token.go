package nodeconf

import (
	"crypto/hmac"
	"crypto/sha256"
	"math/big"
)

const tokenAlphabet = "0123456789abcdefghijklmnopqrstuvwxyz"

// Token is the bootstrap token "ID.SECRET" of a machine, or of a pool. It
// follows from the join key and the name alone, so that the operator and every
// master derive the same one; it has no end, and ends with the join key.
func Token(joinKey []byte, pool bool, name string) string {
	if pool {
		return token(joinKey, "pool", name)
	}
	return token(joinKey, "node", name)
}

// OperatorToken is by which who has the cluster's secrets proves it to masters'
// agents. It is no bootstrap token: no API server knows it.
func OperatorToken(joinKey []byte) string { return token(joinKey, "operator", "operator") }

func token(joinKey []byte, kind, name string) string {
	mac := hmac.New(sha256.New, joinKey)
	mac.Write([]byte("kimage.dev bootstrap token v1\n" + kind + "\n" + name))
	n := new(big.Int).SetBytes(mac.Sum(nil))
	base, digit := big.NewInt(int64(len(tokenAlphabet))), new(big.Int)
	token := make([]byte, 0, 23)
	for i := range 22 {
		if i == 6 {
			token = append(token, '.')
		}
		n.DivMod(n, base, digit)
		token = append(token, tokenAlphabet[digit.Int64()])
	}
	return string(token)
}
